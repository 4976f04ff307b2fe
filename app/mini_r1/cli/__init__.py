"""The commands of `mini-r1`. Heavy imports happen inside a command."""
