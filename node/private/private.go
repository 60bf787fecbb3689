// Package private keeps files to the one who owns them: by mode bits, on Windows
// by access lists.
//
// On Windows private means that only SYSTEM, the administrators and the user of
// this process may read a file or change a directory, and that the list of the
// directory above is not inherited. A file system without access lists (FAT)
// keeps nothing private, and Loose says so.
package private
