"""This machine: devices, nodes, roles, control groups, processes, paths. No torch."""
