"""Door for published scripts: `from share import *` before a model is built applies `config.save_memory`."""

import config
from ldm.modules.attention import slice_attention

if config.save_memory:
    slice_attention(1)
