"""Summarise run records as tables, rankings, findings, figures and one HTML page."""
