"""`mini-r1 report`: run directories as one page, and as Markdown with plots. No torch, no network."""
