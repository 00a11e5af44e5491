/* The encoder file in flash, at a boundary of TEC_ALIGNMENT. ENCODER is its path, given when this is assembled. */
    .section .rodata.encoder, "a"
    .balign 16
    .global encoder_file
encoder_file:
    .incbin ENCODER
    .global encoder_file_end
encoder_file_end:
