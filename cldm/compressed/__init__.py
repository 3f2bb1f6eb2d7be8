"""Quantized and pruned models at work: loaded, and their blocks fused for the CPU and for GPUs.

A loaded model is fused by giving modules another class in place (`module.__class__ = FusedResBlock`): their
children, parameters, names and hooks stay, so that all who look at the model see the same one. Only `forward`
is another: norms and gates hand bytes to the quantized layers behind them, sums happen inside layers. Results
are those of the layers apart, up to the rounding of float sums. For inference alone.
"""
