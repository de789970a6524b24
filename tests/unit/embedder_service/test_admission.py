import pytest

from embedder_service.admission import Admission
from service_kit.errors import ResourceExhausted


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def refusal(admission, images, size):
    with pytest.raises(ResourceExhausted) as caught, admission.admit(images, size):
        pass
    return caught.value


def test_places_are_free_again_after_the_reply():
    admission = Admission(2, 100)
    for _ in range(3):
        with admission.admit(2, 100):
            assert admission.images == 2
    assert admission.images == 0


def test_places_are_free_again_after_an_error():
    admission = Admission(2, 100)
    with pytest.raises(ZeroDivisionError), admission.admit(2, 100):
        1 / 0  # noqa: B018
    assert admission.images == 0


def test_too_many_images_are_refused_with_what_is_held_and_what_is_allowed():
    admission = Admission(3, 1000)
    with admission.admit(2, 10):
        error = refusal(admission, 2, 10)
        assert "it holds 2 of at most 3 images, and the request brings 2 more" in error.message
        with admission.admit(1, 10):
            pass


def test_too_many_bytes_are_refused_with_what_is_held_and_what_is_allowed():
    admission = Admission(100, 50)
    with admission.admit(1, 30):
        error = refusal(admission, 1, 21)
        assert "it holds 30 of at most 50 bytes, and the request brings 21 more" in error.message
        with admission.admit(1, 20):
            pass


def test_single_images_and_batches_are_held_to_the_same_rule():
    admission = Admission(4, 1000)
    with admission.admit(3, 10), admission.admit(1, 10):
        refusal(admission, 1, 10)
        refusal(admission, 3, 10)


def test_the_time_to_try_again_is_a_second_before_anything_is_measured(clock):
    admission = Admission(1, 1000, clock)
    with admission.admit(1, 10):
        assert refusal(admission, 1, 10).retry_after == 1.0


def test_the_time_to_try_again_comes_from_the_measured_rate(clock):
    admission = Admission(10, 1000, clock)
    with admission.admit(10, 10):
        clock.now += 5.0  # half a second for an image
    clock.now += 3600.0  # an idle hour says nothing about the rate
    with admission.admit(8, 1000):
        assert refusal(admission, 3, 0).retry_after == pytest.approx(0.5)  # one image must go first
        assert refusal(admission, 6, 0).retry_after == pytest.approx(2.0)
        assert refusal(admission, 1, 500).retry_after == pytest.approx(2.0)  # half of what is held must go first


def test_the_time_to_try_again_has_bounds(clock):
    admission = Admission(100, 1000, clock)
    with admission.admit(100, 10):
        clock.now += 0.001
    with admission.admit(100, 10):
        assert refusal(admission, 1, 10).retry_after == 0.05
        clock.now += 1e6
    with admission.admit(100, 10):
        assert refusal(admission, 100, 10).retry_after == 30.0
