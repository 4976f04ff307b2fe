"""A run on the Hugging Face hub: what is sent, the model card, and the sending, which goes on where it stopped."""
