"""Any PyTorch network: what can go is found by one recorded forward pass, and every cut is proved."""
