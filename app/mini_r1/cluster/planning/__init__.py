"""What a recipe means on given devices: batch, memory, disk, time, and what cannot work."""
