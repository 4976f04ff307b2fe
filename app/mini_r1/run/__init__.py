"""The run directory: its layout, its manifest, the reader of a run, health and listings. No torch."""
