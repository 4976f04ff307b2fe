"""A run directory becomes one page to look at, and Markdown with plots for a README.

Reads run directories and nothing else; no torch, no network. `build.build` is the way in.
"""
