"""The peak of memory grows with what was held, and is said in MiB."""

import numpy as np

from common.memory import memory_sentence, peak_memory


def test_the_peak_is_at_least_what_was_held():
    held = np.ones(20 * 2**20, np.uint8)
    assert peak_memory()["ram"] >= held.nbytes


def test_the_sentence_names_what_was_used():
    assert (
        memory_sentence({"ram": 812 << 20, "gpu": 2301 << 20}) == "peak memory 812 MiB RAM and 2301 MiB GPU"
    )
    assert memory_sentence({"ram": 3 << 20, "gpu": None}) == "peak memory 3 MiB RAM"
    assert memory_sentence({"ram": None, "gpu": None}) == "peak memory unknown"
