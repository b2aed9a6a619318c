"""An ordinary Flower app: a small CNN on CIFAR-10, several local epochs, FedAvg."""
