"""DeepSpeed need not be installed: what imports it is imported by the processes of its scenarios alone."""

collect_ignore = ["zero.py"]
