"""ShellGPT: its command, with and without functions."""

from cases import BASE_URL, KEY, MODEL, PARIS, case, program, run

AT = {
    "API_BASE_URL": BASE_URL,
    "OPENAI_API_KEY": KEY,
    "DEFAULT_MODEL": MODEL,
    "OPENAI_USE_FUNCTIONS": "false",
    "SHELL_INTERACTION": "false",
    "PRETTIFY_MARKDOWN": "false",
}


@case("a question, and a chat")
def question() -> None:
    assert program("sgpt", "--temperature", "0", "--no-cache", PARIS, **AT).strip()
    assert program("sgpt", "--temperature", "0", "--no-cache", "--chat", "one", PARIS, **AT).strip()
    assert program("sgpt", "--temperature", "0", "--no-cache", "--chat", "one", PARIS, **AT).strip()


run()
