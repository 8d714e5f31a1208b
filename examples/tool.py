"""A tool for a language model: runs the Python that the model writes, and returns what the model should read.

The calls of one conversation share a session, so that variables, files and imports are kept between them.
"""

from isol8 import ExecutionRequest, Isol8, Options

# The description in the format that most model APIs take.
DESCRIPTION = {
    "name": "python",
    "description": "Runs Python in a sandbox. Variables and files are kept between calls. Returns what is printed.",
    "input_schema": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
}

LIMITS = Options(timeout_ms=5_000, memory_limit="256m")


def call(isol8: Isol8, code: str) -> str:
    """Runs the code; returns its output, or the traceback that tells the model what to correct."""
    result = isol8.execute(ExecutionRequest("python", code), LIMITS)
    if result.timed_out:
        return "The code took longer than 5 seconds and was ended."
    return f"{result.stdout}\n{result.stderr}".strip()


def main() -> None:
    # Calls of a model; it corrects the mistake of its second call in the third.
    calls = [
        "prices = {'apple': 3, 'pear': 4}",
        "print(prices['plum'])",
        "print(sum(prices.values()))",
        "while True: pass",
    ]
    with Isol8(session_id="conversation-1") as isol8:
        for code in calls:
            print(f">>> {code}\n{call(isol8, code)}")


if __name__ == "__main__":
    main()
