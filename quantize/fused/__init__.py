"""Norms and convolutions joined with the quantized layers behind them."""
