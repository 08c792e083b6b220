"""EdgeForge: a Llama checkpoint becomes a verified bundle for one named piece of hardware."""

__version__ = "0.1.0"
