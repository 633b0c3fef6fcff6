"""`python -m lfi_cli`"""

from lfi_cli.main import main

main()
