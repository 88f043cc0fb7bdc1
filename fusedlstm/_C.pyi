class Problem:
    def __init__(
        self,
        *,
        steps: int,
        batch: int,
        hidden: int,
        outputs: int | None = None,
        directions: int = 1,
        dtype: str = "float32",
    ) -> None: ...

class Limits:
    def __init__(
        self,
        *,
        multiprocessors: int,
        threads_per_multiprocessor: int,
        registers_per_multiprocessor: int = 65536,
    ) -> None: ...

class Plan:
    @property
    def strategy(self) -> str: ...
    @property
    def units(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    @property
    def registers(self) -> int: ...
    @property
    def launches_per_step(self) -> int: ...
    @property
    def reason(self) -> str: ...

def build_info() -> dict[str, str]: ...
def instruction_set() -> str: ...
def make_plan(problem: Problem, limits: Limits) -> Plan: ...
