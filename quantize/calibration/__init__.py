"""What is measured before quantization: ranges of inputs, sensitivity of layers, plans for a budget."""
