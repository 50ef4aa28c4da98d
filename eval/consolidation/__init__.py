"""What batch-aware consolidation costs in quality: teacher forcing of many texts at a time, one decode batch a step."""
