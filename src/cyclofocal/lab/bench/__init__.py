"""Benchmark of losses: candidates, measurement, records, tables and figure."""
