"""Descriptions of run folders: text, tables and one HTML page. Nothing here writes to them."""
