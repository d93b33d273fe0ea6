        // A row of any length, read from memory each time.
        for (var quad = lane; quad < p.quads; quad += lanes) {
            sum += vec4<f32>({{X}}[base + quad]);
        }
        let mean = mean_of(sum);
        for (var quad = lane; quad < p.quads; quad += lanes) {
            let d = centered(vec4<f32>({{X}}[base + quad]), mean, quad);
            squares += d * d;
        }
        let factor = 1.0 / sqrt(mean_of(squares) + p.eps);
        for (var quad = lane; quad < p.quads; quad += lanes) {
            let d = vec4<f32>({{X}}[base + quad]) - mean;
            y[base + quad] = vec4<E>(d * factor * scale[quad] + bias[quad]);
        }
