"""Evidence as tables, HTML pages and SVG."""
