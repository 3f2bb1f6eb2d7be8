"""Every command ends in the same ways: a result, one sentence, one of four codes."""

import errno
import os
import signal

import pytest

from common.shell import Parser, Stopped, is_out_of_memory, run_command, sentence


def raising(error):
    def act():
        raise error

    return act


@pytest.mark.parametrize(
    ("result", "code", "out"), [(None, 0, ""), (0, 0, ""), (1, 1, ""), ("a\nb", 0, "a\nb\n")]
)
def test_a_result_is_printed_or_is_the_code(result, code, out, capsys):
    assert run_command(lambda: result) == code
    assert capsys.readouterr() == (out, "")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("steps=0:\n give more"), 2, "steps=0: give more"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.png"), 2, "a.png: No such file"),
        (
            OSError(errno.ENOSPC, "No space left", "a"),
            2,
            "a: No space left: free some space, then repeat the command",
        ),
        (FloatingPointError("the loss is NaN"), 2, "the loss is NaN"),
        (RuntimeError("CUDA out of memory. Tried"), 2, "out of memory: take less"),
        (MemoryError(), 2, "out of memory: take less"),
        (Stopped("stopped; go on by --resume"), 130, "stopped; go on by --resume"),
        (KeyboardInterrupt(), 130, "stopped; nothing was written"),
    ],
)
def test_a_mistake_and_a_stop_are_one_sentence(error, code, said, capsys):
    assert run_command(raising(error), out_of_memory="take less") == code
    assert capsys.readouterr() == ("", f"{said}\n")


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), KeyError("x"), AssertionError()])
def test_a_fault_of_the_program_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run_command(raising(error))


def test_ctrl_c_counts_even_where_a_library_turns_it_into_another_error(capsys):
    def act():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("a callback failed") from None

    assert run_command(act, stopped=lambda: "stopped at 7") == 130
    assert capsys.readouterr().err == "stopped at 7\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_ctrl_c_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run_command(lambda: os.kill(os.getpid(), signal.SIGINT)) == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_of_a_data_loader_only_the_last_line_is_said():
    error = ValueError(
        "Caught ValueError in DataLoader worker process 0.\nTraceback\nValueError: a.png is damaged"
    )
    assert sentence(error) == "a.png is damaged"


def test_memory_that_ran_out_is_known_by_its_words():
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(RuntimeError("size mismatch"))


def test_a_wrong_command_line_is_one_sentence_with_the_way_to_help(capsys):
    parser = Parser("-m scenes.fill50k", "What it does.\n\n    an example")
    parser.add_argument("--count", type=int)
    with pytest.raises(SystemExit) as raised:
        parser.parse_args(["--count", "x"])
    assert raised.value.code == 2
    assert capsys.readouterr().err.endswith("; python -m scenes.fill50k --help lists everything\n")
    assert "    an example" in parser.format_help()
    with pytest.raises(SystemExit):
        parser.parse_args(["--cou", "1"])  # no abbreviations: a later flag could change their meaning


def test_the_usage_of_a_subcommand_begins_with_python_once():
    commands = Parser("tool.py").add_subparsers()
    assert commands.add_parser("cut").format_usage().startswith("usage: python tool.py cut")
