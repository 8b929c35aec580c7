"""Self-contained pages of figures: plots as SVG, tables, one style for screen and print."""
