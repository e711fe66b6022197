"""What a session leaves behind, and whether a folder holds one."""
