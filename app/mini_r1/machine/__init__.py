"""What this machine has: devices, nodes, roles, control groups, processes. No torch."""
