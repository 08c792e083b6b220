"""Bundles to where devices get them, and back: OCI registries, the Hugging Face hub, and folders that fsspec opens.

What goes out is verified first, and seen by the caller's checks (licence, signature); what comes in is verified while
it arrives, seen by the caller's checks, and renamed into its place at the end.
"""

from edgeforge.publish.api import Wire, publish, pull
from edgeforge.publish.reference import Reference, parse_reference

__all__ = ["Reference", "Wire", "parse_reference", "publish", "pull"]
