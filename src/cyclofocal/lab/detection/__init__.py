"""Object detection: RetinaNet and FCOS in the training loop of the laboratory."""
