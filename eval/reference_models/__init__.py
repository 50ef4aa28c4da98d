"""Small DeepSeek-class mixture-of-experts models trained from scratch on CPU, used as reference models."""
