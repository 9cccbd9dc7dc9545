"""Draft trees and adaptive draft length on stock vLLM. See docs/trees.md."""
