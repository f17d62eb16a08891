"""The exchange of Get Blob and Put Page in C, as far as it is plain: a module that may be missing. See exchange.c."""
