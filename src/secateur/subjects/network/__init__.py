"""Any PyTorch network as a subject: units are found by one recorded forward pass, and every cut is proved."""
