"""WHERE a recipe runs: devices, nodes, roles, plan, preflight, launch. No torch."""
