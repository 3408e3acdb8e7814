"""The topology of neurons as torchmetrics classes."""
