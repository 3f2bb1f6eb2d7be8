"""The worker: order, cancelling, deadlines, a full queue, mistakes that end one job only."""

import threading
import time
from functools import partial

import numpy as np
import pytest
import torch

from app.drawing import Pictures, draw
from app.jobs import BOTS, FAILED, PEOPLE, PREPARATION, Cancelled, Job, TooLate
from app.models import LoadedModel
from app.provenance import Provenance
from app.worker import OutOfMemory, QueueFull, Worker
from cldm.pipeline import Pipeline
from cldm.request import Request
from tests.small_files import write_small_model

SOON = 20  # seconds that no test here needs, on any machine


class OneModel:
    first = "small"

    def __init__(self, pipeline=None):
        self.loaded = pipeline and LoadedModel("small", pipeline, Provenance())

    def get(self, name):
        return self.loaded


@pytest.fixture
def worker():
    made = Worker(OneModel(), max_queue=3)
    yield made
    made.close()


@pytest.fixture
def busy(worker):
    """The worker with a job that runs until the event is set."""
    let_go, runs = threading.Event(), threading.Event()
    worker.add(Job(lambda job: (runs.set(), let_go.wait(SOON))))
    assert runs.wait(SOON)
    yield let_go
    let_go.set()


def order_of(worker, let_go, priorities):
    done = []
    jobs = [worker.add(Job(lambda job, n=n: done.append(n), one)) for n, one in enumerate(priorities)]
    let_go.set()
    for job in jobs:
        job.wait(SOON)
    return done


def test_people_come_before_bots_and_each_kind_in_its_order(worker, busy):
    assert order_of(worker, busy, [BOTS, PREPARATION, PEOPLE]) == [2, 0, 1]


def test_equals_are_served_as_they_came(worker, busy):
    assert order_of(worker, busy, [PEOPLE] * 3) == [0, 1, 2]


def test_how_many_come_before_is_known(worker, busy):
    bot, person = worker.add(Job(lambda job: 1, BOTS)), worker.add(Job(lambda job: 1))
    assert (worker.ahead(person), worker.ahead(bot)) == (1, 2)


def test_a_full_queue_refuses_in_a_sentence_and_works_on(worker, busy):
    jobs = [worker.add(Job(lambda job: "done")) for _ in range(worker.max_queue)]
    with pytest.raises(QueueFull, match="3 are waiting already"):
        worker.add(Job(lambda job: "late"))
    busy.set()
    assert [job.wait(SOON) for job in jobs] == ["done"] * 3


def test_who_gave_up_waiting_takes_no_place_in_the_queue(worker, busy):
    waiting = [worker.add(Job(lambda job: "done")) for _ in range(worker.max_queue)]
    waiting[1].cancel()
    worker.add(Job(lambda job: "now there is room"))
    with pytest.raises(Cancelled):
        waiting[1].wait(SOON)


def test_a_job_that_is_too_late_is_not_begun(worker, busy):
    done = []
    late = worker.add(Job(done.append, deadline=time.monotonic() - 1))
    busy.set()
    with pytest.raises(TooLate):
        late.wait(SOON)
    assert not done


def test_leaving_cancels_what_one_asked_for_and_nothing_else(worker, busy):
    mine, others = worker.add(Job(lambda job: 1, owner="me")), worker.add(Job(lambda job: 2, owner="you"))
    worker.cancel_of("me")
    busy.set()
    assert others.wait(SOON) == 2
    with pytest.raises(Cancelled):
        mine.wait(SOON)


def test_nobody_owns_what_has_no_owner(worker, busy):
    job = worker.add(Job(lambda job: 1))
    worker.cancel_of("")
    busy.set()
    assert job.wait(SOON) == 1


@pytest.mark.parametrize("error", [ZeroDivisionError("a fault"), ValueError("a mistake"), SystemExit(3)])
def test_a_mistake_ends_its_job_and_no_other(worker, error):
    def act(job):
        raise error

    wrong = worker.add(Job(act))
    with pytest.raises(type(error)):
        wrong.wait(SOON)
    assert wrong.state == FAILED
    assert worker.add(Job(lambda job: "alive")).wait(SOON) == "alive"


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 9 GiB")]
)
def test_out_of_memory_says_what_to_lower_and_lets_go_of_everything(worker, error):
    held = []

    def act(job):
        activations = torch.zeros(8)
        held.append(torch.utils.weak.WeakTensorKeyDictionary())
        held[0][activations] = "alive"
        raise error

    job = worker.add(Job(act))
    with pytest.raises(OutOfMemory, match="lower the resolution"):
        job.wait(SOON)
    assert len(held[0]) == 0


def test_the_worker_is_idle_when_all_is_done(worker, busy):
    assert not worker.idle
    busy.set()
    worker.add(Job(lambda job: 1)).wait(SOON)
    deadline = time.monotonic() + SOON
    while not worker.idle and time.monotonic() < deadline:
        time.sleep(0.01)
    assert worker.idle


def test_a_closed_worker_answers_everybody(worker, busy):
    waiting = worker.add(Job(lambda job: 1))
    worker.close()
    busy.set()
    with pytest.raises(Cancelled):
        waiting.wait(SOON)
    with pytest.raises(RuntimeError, match="closing"):
        worker.add(Job(lambda job: 1))


# Requests


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return Pipeline.from_files(write_small_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def artist(pipeline):
    made = Worker(OneModel(pipeline))
    yield made
    made.close()


@pytest.fixture
def drawing():
    image = np.full((64, 64, 3), 255, np.uint8)
    image[20:40, 30:34] = 0
    return image


def test_pictures_are_those_that_each_seed_gives_alone(artist, pipeline, drawing):
    request = Request("red star", steps=2, seed=5, num_samples=3)
    drawn = artist.submit(request, Pictures([drawing])).wait(SOON)
    assert [one.seed for one in drawn.requests] == [5, 6, 7]
    for image, seed in zip(drawn.images, (5, 6, 7), strict=True):
        alone = pipeline(drawing, Request("red star", steps=2, seed=seed))
        assert (image == alone.images[0]).all()


def test_cancelling_stops_within_one_step(artist, pipeline, drawing, monkeypatch):
    steps, call = [], Pipeline.__call__

    def counted(self, *args, on_step, **named):
        def heard(step):
            steps.append(step.index)
            if step.index == 3:
                job.cancel()
            on_step(step)

        return call(self, *args, on_step=heard, **named)

    monkeypatch.setattr(Pipeline, "__call__", counted)
    started = threading.Event()
    artist.add(Job(lambda job: started.wait(SOON)))
    job = artist.submit(Request("red star", steps=200), Pictures([drawing]))
    started.set()
    with pytest.raises(Cancelled):
        job.wait(SOON)
    assert steps == [0, 1, 2, 3]


def test_a_deadline_ends_a_request_between_two_steps(artist, drawing):
    late = time.monotonic() + 0.3
    job = artist.submit(Request("red star", steps=500), Pictures([drawing]), priority=BOTS, deadline=late)
    with pytest.raises(TooLate):
        job.wait(SOON)
    assert 0 < job.progress.step < 500


def test_progress_counts_steps_and_pictures(artist, drawing):
    job = artist.submit(Request("red star", steps=3, num_samples=2), Pictures([drawing]))
    job.wait(SOON)
    now = job.progress
    assert (now.step, now.steps, now.picture, now.pictures, now.seconds_left) == (3, 3, 1, 2, 0)


def test_previews_come_rarely_and_take_a_tenth_of_the_time(artist, pipeline, drawing, monkeypatch):
    monkeypatch.setattr("app.drawing.PREVIEW_SECONDS", 0.0)
    made = []

    def slow_preview(self, x0):
        made.append(time.perf_counter())
        time.sleep(0.02)
        return [np.zeros((8, 8, 3), np.uint8)]

    monkeypatch.setattr(Pipeline, "preview", slow_preview)
    drawn = artist.submit(Request("red star", steps=60), Pictures([drawing])).wait(SOON)
    assert made
    # The first one is made before anybody knows what it costs.
    assert drawn.preview_seconds <= 0.1 * drawn.seconds + 0.03


def test_no_preview_is_made_where_nobody_looks(artist, pipeline, drawing, monkeypatch):
    monkeypatch.setattr("app.drawing.PREVIEW_SECONDS", 0.0)
    request, pictures = Request("red star", steps=8), Pictures([drawing])
    act = partial(draw, artist.models.get(""), request, pictures)
    job = artist.add(Job(act, shows_previews=False))
    assert job.wait(SOON).preview_seconds == 0
    assert job.progress.preview is None
