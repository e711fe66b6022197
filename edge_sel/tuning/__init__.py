"""Which threads, spinning and batch size take the fewest joules here: measured, then chosen."""
