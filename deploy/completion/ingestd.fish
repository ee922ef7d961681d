# fish completion of ingestd; the program itself knows the words.
function __ingestd_complete
    env _INGESTD_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=$argv[1] \
        _TYPER_COMPLETE_ARGS=(commandline -cp) ingestd
end

complete --command ingestd --no-files --arguments "(__ingestd_complete get-args)" \
    --condition "__ingestd_complete is-args"
