"""What Milvus means: its methods, errors, timestamps and probes, as pure functions over bytes."""
