/* Text on the debugger's console, by semihosting; a product has its own. */
#ifndef CONSOLE_H
#define CONSOLE_H

#include <stdint.h>

void print(const char *text);
void print_decimal(int32_t number);
void print_hexadecimal(uint64_t number);

/* Ends the program; 0 is success. */
_Noreturn void end(int status);

#endif
