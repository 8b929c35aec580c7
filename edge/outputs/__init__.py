"""Files that an inspection writes: masks, overlays, tables; whole or not at all."""
