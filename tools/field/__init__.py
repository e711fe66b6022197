"""Parts of the field benchmark (``tools/field_benchmark.py``)."""
