"""Features of the frozen backbone: computed once, kept in memory or in a file, in float32 or int8."""
