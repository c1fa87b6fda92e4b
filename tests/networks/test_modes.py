"""Laws of borrowed modules: in eval mode as long as anybody needs it, then as they were found."""

import threading

from torch import nn

from ood_lib.networks.modes import in_eval


def frozen_in_part() -> nn.Sequential:
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2), nn.Linear(2, 2))
    network[1].eval()
    return network


def modes(network: nn.Module) -> list[bool]:
    return [module.training for module in network.modules()]


def test_each_module_is_given_back_in_its_own_mode():
    network = frozen_in_part()
    before = modes(network)
    try:
        with in_eval(network):
            assert not any(modes(network))
            raise RuntimeError
    except RuntimeError:
        assert modes(network) == before == [True, True, False, True]


def test_who_leaves_first_changes_nothing_for_who_stays():
    network = frozen_in_part()
    before, wrapper = modes(network), nn.Sequential(network)
    first, second = in_eval(network), in_eval(wrapper)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(modes(network))
    second.__exit__(None, None, None)
    assert modes(network) == before and wrapper.training


def test_threads_that_come_and_go_leave_it_as_it_was():
    network, wrong = frozen_in_part(), []
    before = modes(network)

    def borrow() -> None:
        for _ in range(300):
            with in_eval(network):
                wrong.extend(module for module in network.modules() if module.training)

    threads = [threading.Thread(target=borrow) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and modes(network) == before
