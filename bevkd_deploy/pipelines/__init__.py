"""One function per stage: each reads files and writes files with a manifest. The only wiring of the packages below."""
