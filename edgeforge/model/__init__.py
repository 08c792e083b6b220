"""What is deployed: the architecture, the checkpoint, the tokenizer. Knows nothing of hardware or output formats."""
