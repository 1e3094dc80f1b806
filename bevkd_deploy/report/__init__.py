"""Result files in, Markdown, HTML, JUnit, terminal tables, plots and pictures out. Measures nothing itself."""
