"""Function calls: descriptions of functions in prompts, parsers of calls in answers, and grammars for calls."""

from run_gpt.models.tools.formats import ToolFormat, find_tool_format, tool_template
from run_gpt.models.tools.function import Function
from run_gpt.models.tools.parser import ToolParser
from run_gpt.models.tools.pieces import ArgumentsPiece, CallPiece, Piece, TextPiece, joined
from run_gpt.models.tools.tokens import visible_decode

__all__ = [
    "ArgumentsPiece",
    "CallPiece",
    "Function",
    "Piece",
    "TextPiece",
    "ToolFormat",
    "ToolParser",
    "find_tool_format",
    "joined",
    "tool_template",
    "visible_decode",
]
